// Inspects a picture with a model that `offnominal export --single-graph` wrote; see README.md.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// The pixels of a binary PPM (P6, 8 bits, no comments), which must be of the size that is asked for.
std::vector<uint8_t> read_ppm(const char* path, int64_t height, int64_t width) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int64_t columns = 0, rows = 0, largest = 0;
    if (!(file >> kind >> columns >> rows >> largest) || kind != "P6" || largest != 255)
        throw std::runtime_error(std::string(path) + ": is no binary PPM of 8 bits");
    if (rows != height || columns != width)
        throw std::runtime_error(std::string(path) + ": the model takes " + std::to_string(width) +
                                 " x " + std::to_string(height) + " pixels only");
    file.get();  // the single space behind the header
    std::vector<uint8_t> pixels(height * width * 3);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size()))
        throw std::runtime_error(std::string(path) + ": ends too early");
    return pixels;
}

int main(int count, char** given) try {
    if (count != 4) throw std::runtime_error("inspect MODEL.onnx PICTURE.ppm MAP.pgm");
    Ort::Env env;
    Ort::Session session(env, given[1], Ort::SessionOptions());  // on Windows a wide string
    const auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    auto pixels = read_ppm(given[2], shape[0], shape[1]);
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto image = Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(),
                                                   shape.data(), shape.size());
    const std::array<const char*, 1> in{"image"};
    const std::array<const char*, 4> out{"score", "map", "is_anomalous", "threshold"};
    auto found = session.Run(Ort::RunOptions(), in.data(), &image, 1, out.data(), out.size());
    const float score = *found[0].GetTensorData<float>(), limit = *found[3].GetTensorData<float>();
    const bool anomalous = *found[2].GetTensorData<bool>();
    std::cout << "score " << score << ", threshold " << limit << ": "
              << (anomalous ? "REJECT" : "good") << std::endl;
    const float* map = found[1].GetTensorData<float>();  // white: twice the threshold or more
    std::ofstream file(given[3], std::ios::binary);
    file << "P5\n" << shape[1] << " " << shape[0] << "\n255\n";
    for (int64_t i = 0; i < shape[0] * shape[1]; i++)
        file.put(static_cast<char>(std::clamp(map[i] / limit * 127.5f, 0.0f, 255.0f)));
    return anomalous ? 1 : 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 2;
}
